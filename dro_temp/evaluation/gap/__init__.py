"""How near do predicted temperatures come to the best one of every row? The amortisation gap."""
