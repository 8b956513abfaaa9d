"""Reading a ``/metrics`` as Prometheus does."""

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """What a scrape found."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]
        series = [(sample.name, *sorted(sample.labels.items())) for sample in self.samples]
        assert len(series) == len({*series}), "a series twice"
        for family in self.families.values():
            assert family.documentation, family.name

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels among theirs; 0 without any."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, label: str) -> set[str]:
        """Every value that a label has anywhere."""
        return {sample.labels[label] for sample in self.samples if label in sample.labels}


def read(answer: httpx.Response) -> Scrape:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape(answer.text)
