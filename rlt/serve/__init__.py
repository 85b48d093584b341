"""The reward as a service: students loaded once, rewards answered over HTTP to any trainer."""
