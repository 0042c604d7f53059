"""
Embed every text of preference pairs once, with a sentence encoder or a language model, frozen. The table that comes out is
what `--embeddings` of the other scripts takes.

```sh
python examples/embed_preferences.py \
    --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --normalize true \
    --dataset_name data/prism/train.parquet data/prism/validation.parquet data/prism/test.parquet \
    --output_file data/prism/embeddings.parquet
```

As in the paper (section C.2), by the last hidden state of the last token of prompt and response:

```sh
python examples/embed_preferences.py \
    --model_name_or_path meta-llama/Meta-Llama-3-8B --dtype bfloat16 \
    --kind prompt_response --pooling last --max_length 1024 \
    --dataset_name data/ultrafeedback_hh/{train,validation,test}.parquet \
    --output_file data/ultrafeedback_hh/embeddings.parquet
```

Where a text has more than `max_length` tokens, a response alone is cut off at its end. Of a prompt with its response the
start is cut off, and a response that leaves no room for a prompt is refused. Train a reward model with the same settings,
`--embedder_name_or_path`, `--embedder_pooling`, ..., and it embeds new texts alike.

On several GPUs, one process each, which share the texts and one disk:
`accelerate launch --multi_gpu --num_processes 8 examples/embed_preferences.py --model_name_or_path ...`

A run that was killed is resumed when its command is given again, on as many processes as there are then: it takes over the
shards in `<output_file>.shards` of the same settings and texts that are whole. It does not notice when the model itself has
changed, in its folder or behind the name of a branch: delete the shards then.
"""

from np_trl.scripts.embed import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()
