"""One clip over several GPUs of this machine.

split.py        pure: which rows, heads and columns are whose, and what several GPUs gain
exchange.py     rows for heads between the GPUs (torch.distributed, imported in exchange.py alone)
channel.py      messages and memory between processes
group.py        the processes: started, asked, stopped, and what is said of one that fails
start_group.py            what starts and watches them: torchrun
start_rank.py worker.py   what runs in each of them
transformer.py  a group as a Transformer
decoder.py      a group as a VideoDecoder

ComfyUI's own process is in no process group: what a lost GPU does to its neighbours ends processes.
"""
