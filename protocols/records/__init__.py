"""Facts that nodes gossip: the store, its sync, its clocks, who may write what. Not: what the chain decides."""
