"""Commands on a rollout: deploy, steer, look at what runs, read its logs."""
