"""Transformers on what is cleared: `from_pretrained` reads verified copies, and a newer version is taken up by itself.

    python docs/examples/from_pretrained.py chat "hello, how are you?"

Nothing is fetched from a hub, no code of the checkpoint is run, and only safetensors are read.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from trainwarden import serving


def build(files: serving.Files) -> tuple[Any, Any]:
    """The model and its tokenizer. What transformers maps stays as it was verified: the copies have no name by then."""
    safely = {"local_files_only": True, "trust_remote_code": False}
    with files.folder() as folder:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **safely)
        return model.eval(), AutoTokenizer.from_pretrained(folder, **safely)


def main() -> None:
    name, prompt = sys.argv[1:]
    with serving.open(name, build) as chat:
        version = chat.current()  # at the begin of every request; hold on to it until the answer is out
        model, tokenizer = version.model
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
        print(f"{tokenizer.decode(said, skip_special_tokens=True)}\n(from {version.digest})")


if __name__ == "__main__":
    main()
