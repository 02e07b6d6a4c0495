"""What a node tells an OpenTelemetry collector, if its operator names one: traces and logs."""
