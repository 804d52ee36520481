"""Loss landscapes and sharpness of checkpoints."""
