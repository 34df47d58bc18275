"""Numbers written backwards: `314>` is answered by `413`."""

from effopd.common.randomness import generator
from effopd.tasks.base import Problem, Task, Verdict

PAD, EOS, CHARACTERS = "<pad>", "</s>", "0123456789>"


class ReversalTask(Task):
    def __init__(self, section):
        self.section = section  # `task` of the configuration; to verify, its name is enough

    def verify(self, problem, completion):
        right = completion == problem.answer
        return Verdict(float(right), "right" if right else "another number")

    def right_completion(self, problem: Problem):
        return problem.answer

    def wrong_completion(self, problem: Problem):
        return problem.answer + "0"

    def make_tables(self):
        import pandas as pd

        digits, rng = self.section["digits"], generator(self.section["seed"], "reversal")
        numbers = [f"{n:0{digits}}" for n in rng.permutation(10**digits)]
        tables = {}
        for split in ("test", "validation", "train"):  # one after the other, so that they cannot overlap
            if split in self.section["splits"]:
                size = self.section["splits"][split]
                chosen, numbers = numbers[:size], numbers[size:]
                rows = [(f"{number}>", number[::-1], float(digits)) for number in chosen]
                tables[split] = pd.DataFrame(rows, columns=["problem", "answer", "difficulty"])
        if "corpus" in self.section:  # to pretrain on: not of a task that is only evaluated on
            train, corpus = tables["train"]["problem"], self.section["corpus"]
            prompts = [train[row] for row in rng.integers(len(train), size=corpus["size"])]
            slips = rng.random(len(prompts)) < corpus["slips"]
            answers = [p[:-1] if slip else p[-2::-1] for p, slip in zip(prompts, slips, strict=True)]
            tables["corpus"] = pd.DataFrame({"prompt": prompts, "completion": answers})
        return tables, {}

    def make_tokenizer(self):  # for models that are trained from scratch
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
        )
