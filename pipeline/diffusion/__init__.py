"""Diffusion mathematics without models, engines or data: noise schedules, objectives, samplers, guidance."""
