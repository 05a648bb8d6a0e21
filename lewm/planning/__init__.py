"""From a goal to actions: costs on imagined latents, and the agent that minimises them."""
