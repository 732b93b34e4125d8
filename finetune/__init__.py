"""LoRA adaptation of models: supervised and by reinforcement learning against the simulator."""
