"""rlt's reward inside other trainers, through a running `rlt serve`. See docs/integrations."""
