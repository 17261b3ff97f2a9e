"""What a training run is made of and leaves behind."""
