"""Losses as pure functions of tensors that are already global in size."""
