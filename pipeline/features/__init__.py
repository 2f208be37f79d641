"""Image encoders and the feature store."""
