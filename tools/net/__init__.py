"""The net: an old and a new commit do the same work on this machine, and what they give is compared bit for bit.

models.py    checkpoints for both sides: tiny, wide, broken, and headers of the published sizes without weights
pack.py      one side's nodes and routes, in a ComfyUI without ComfyUI
reach.py     the few names inside the pack that a probe needs, by their old and new places
record.py    what one side found: a folder of cases, each a tensor or a text
tensors.py   latents, frames and conditioning
machines.py  plans and the doctor's findings on pretended machines
refusals.py  what is said of broken files and wrong inputs
worker.py    one side, a process of its own
compare.py   two folders of cases, side by side
cli.py       the command line
"""
