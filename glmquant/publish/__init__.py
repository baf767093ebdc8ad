"""How a checkpoint gets onto a hub: by the hub's own program, which alone has the token."""
