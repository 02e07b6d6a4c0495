"""One node's part in a rollout: the agent, the conductor, orders to the workloads, health. Not: what the chain decides."""
