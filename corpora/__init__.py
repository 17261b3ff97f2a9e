"""Corpora: reading, listing, checking, packing, downloading and generating speech."""
