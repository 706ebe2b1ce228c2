"""LightX2V's own components behind the engine's interfaces. Importing this folder imports nothing of LightX2V."""
