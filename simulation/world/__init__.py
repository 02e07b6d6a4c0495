"""Virtual time, disks, networks, entropy and faults. Not: what runs in them."""
