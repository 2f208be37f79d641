"""The nightly run: captions for the new images of the inbox."""
