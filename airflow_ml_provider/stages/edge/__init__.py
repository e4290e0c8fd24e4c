"""Models on devices: signed releases over the air, and the reference client that takes them."""
