"""Training aids that know no model: samplers, schedules, callbacks."""
