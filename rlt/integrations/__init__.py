"""rlt's reward in other trainers, through a running `rlt serve`. See docs/integrations."""
