"""How varied replies are: the share of different n-grams among all n-grams of all replies.

1 says that no n-gram comes twice, and a policy that has collapsed to one reply is near 0. It falls
with the number and length of the replies, so compare equally many of similar length. After Li et
al. 2016, section 5.2, who divide by the number of words instead of n-grams. The ppo step of align
reports it for n = 2 on tokens as `response/distinct_2`.
"""

import datasets
import evaluate

# Not at the beginning of a line: evaluate would tell users to install what lies there by that name.
try:
    from align.metrics.inputs import check_config
    from align.metrics.replies import distinct_n
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "distinct_n is a part of align-toolkit and needs it installed: `pip install .` in its "
        f"checkout ({error})."
    ) from error

INPUTS = """
Args:
    predictions (list of str, or list of list of int or str): the replies, as texts whose words are
        parted by whitespace, or as tokens.
    n (int): the length of an n-gram. Default 2.

Returns:
    distinct_<n> (float): in [0, 1]; 0 where no reply has n tokens.

Examples:
    >>> from align import metrics
    >>> metrics.load("distinct_n").compute(predictions=["so it is", "so it was"])
    {'distinct_2': 0.75}
"""
CITATION = """
@inproceedings{li2016,
  title = {A Diversity-Promoting Objective Function for Neural Conversation Models},
  author = {Li, Jiwei and Galley, Michel and Brockett, Chris and Gao, Jianfeng and Dolan, Bill},
  booktitle = {Proceedings of NAACL-HLT},
  year = {2016}
}
"""


class DistinctN(evaluate.Metric):
    """`align.metrics.replies.distinct_n` of texts or tokens."""

    def _info(self):
        check_config("distinct_n", self.config_name)
        kinds = (
            datasets.Value("string"),
            datasets.Sequence(datasets.Value("string")),
            datasets.Sequence(datasets.Value("int64")),
        )
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, n=2):
        return {f"distinct_{n}": distinct_n(predictions, n)}
