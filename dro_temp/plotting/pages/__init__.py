"""What pages of temperatures share."""
