"""Many clips: a list of prompts, a queue, and workers that take from it (tools/run_prompts.py).

jobs.py        what is to be made: the list, each clip's key and name
results.py     what is made: the results file, and files that come to their place whole
queue.py       who makes what: pull queue, retries, lost workers
workers.py     this process and ComfyUI servers as workers
cluster.py     GPUs of a Ray cluster as workers; maker.py is what runs there
forecast.py    time left, and whether a slow worker is to take one of the last clips
show.py        lines on stderr while it runs, the summary at its end
"""
