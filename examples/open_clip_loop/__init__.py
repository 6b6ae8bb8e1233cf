"""What examples/clip_open_clip.py needs besides the loop: options, data, a tiny model, a checkpoint."""
