"""How the tiny checkpoint of the demo is made: data, training, distillation, export. Start with README.md.

captions.py   what a clip can show, how a caption says it, which combinations are held out, the tokenizer
clips.py      draws captioned clips
training.py   what the stages share: the budget of a stage, learning rate, average of the weights, log
models.py     the three networks, small, and how they are run and stored
text.py       stage 1: the text encoder
vae.py        stage 2: the VAE
flow.py       stage 3: text-conditioned flow matching
sampling.py   from noise to latents, in batches: the few-step sampler, and many steps of the teacher
distill.py    stage 4: distillation to four steps
evaluate.py   is it right? 200 held-out prompts, measured by tools/clip_content.py
sheet.py      contact sheets
export.py     native names, and the files of a checkpoint
cli.py        the command line
"""
