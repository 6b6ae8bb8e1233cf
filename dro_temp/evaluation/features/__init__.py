"""What do frozen features tell about classes? Class names, neighbours and linear probes as classifiers."""
