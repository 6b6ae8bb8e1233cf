"""What the study of wrong labels compares."""
