"""mammo-edge trainer: images with masks in, checkpoints with their spec out."""
