"""The worked example of CONTRIBUTING.md works, and the files that it names exist."""

import re
import shutil
import subprocess
import sys

from .testing_utils import ROOT


TEXT = (ROOT / "CONTRIBUTING.md").read_text()
USE = """
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM
from np_trl.trainer.policy import POLICIES, create_policy

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
base = Olmo2ForCausalLM(Olmo2Config(**sizes, num_key_value_heads=4, pad_token_id=0)).eval()
base.save_pretrained("base")
policy = create_policy("base", {"film_site": "attention"}).eval()
assert type(policy) is POLICIES["olmo2"] and type(policy).__name__ == "FiLMOlmo2ForCausalLM"
tokens, latents = torch.arange(3, 10).view(1, 7), torch.randn(1, policy.config.context_config.latent_size)
assert torch.equal(policy(tokens).logits, base(tokens).logits)
assert torch.equal(policy(tokens, latents=latents).logits, base(tokens).logits)
torch.nn.init.normal_(policy.model.film.weight)
steered = policy(tokens, latents=latents).logits
assert (steered - base(tokens).logits).abs().max() > 1e-3
policy.save_pretrained("policy")
again = AutoModelForCausalLM.from_pretrained("policy").eval()
torch.testing.assert_close(again(tokens, latents=latents).logits, steered)
"""


def test_a_decoder_is_added_by_two_files_and_a_line(tmp_path):
    blocks = dict(re.findall(r"```python (\S+)\n(.*?)```", TEXT, re.S))
    line = blocks.pop("__init__.py")
    assert len(blocks) == 2 and line.count("\n") == 1
    shutil.copytree(ROOT / "np_trl", tmp_path / "np_trl")
    models = tmp_path / "np_trl" / "models"
    for name, code in blocks.items():
        (models / name).write_text(code)
    code = (models / "__init__.py").read_text()
    before = "from .modeling_film_qwen2 "
    (models / "__init__.py").write_text(code.replace(before, line + before))
    subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True, timeout=300
    )


def test_the_files_it_names_exist():
    rows = re.findall(r"^\| (?:add|change|support) .*$", TEXT, re.M)
    assert len(rows) == 10
    for path in re.findall(r"`(np_trl/[\w/]+\.py|examples/[\w/]+\.py)`", "\n".join(rows)):
        assert "NAME" in path or (ROOT / path).exists(), path
