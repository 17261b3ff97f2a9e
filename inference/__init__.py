"""A trained model in use: ours and the published systems'."""
