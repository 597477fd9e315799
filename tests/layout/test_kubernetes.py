"""The manifest in contrib/kubernetes: its options are read as the server reads them, and its times add up."""

import re
from itertools import pairwise
from typing import Final

from fastmilter.server.options import OPTIONS
from fastmilter.server.pace import FINAL_GRACE_S
from fastmilter.server.settings import load_settings
from tests.process.harness import ROOT

MANIFEST: Final = (ROOT / "contrib" / "kubernetes" / "deployment.yaml").read_text()
DOCUMENTS: Final = {re.findall(r"^kind: (\w+)$", text, re.MULTILINE)[0]: text for text in MANIFEST.split("\n---\n")}
DEPLOYMENT: Final = DOCUMENTS["Deployment"]


def value(pattern: str, text: str = DEPLOYMENT) -> str:
    """The one thing that ``pattern`` finds at the end of a line."""
    found = re.findall(rf"{pattern}$", text, re.MULTILINE)
    assert len(found) == 1, (pattern, found)
    return str(found[0])


def environment() -> dict[str, str]:
    return dict(re.findall(r'^ +- name: (FASTMILTER_\w+)\n +value: "(.*)"$', DEPLOYMENT, re.MULTILINE))


def test_it_is_plain_yaml_with_all_that_belongs_to_it() -> None:
    assert set(DOCUMENTS) == {"Deployment", "PodDisruptionBudget", "Service"}
    assert not re.search(r"\t|[ \t]$", MANIFEST, re.MULTILINE)
    depths = [len(line) - len(line.lstrip(" ")) for line in MANIFEST.splitlines() if line.strip()]
    assert all(depth % 2 == 0 for depth in depths)
    assert all(after <= before + 4 for before, after in pairwise(depths))


def test_the_server_can_use_its_options() -> None:
    variables = environment()
    assert len(variables) == DEPLOYMENT.count("- name: FASTMILTER_") >= 4
    assert set(variables) <= {option.variable for option in OPTIONS}
    target = value(r'command: \["fastmilter", "serve", "(.*)"\]')
    settings = load_settings({"target": target}, variables)
    assert settings.warnings == ()
    assert [str(address) for address in settings.listen] == ["inet:8894@0.0.0.0"]
    assert settings.allow
    assert settings.workers == int(value(r' cpu: "(\d+)"'))


def test_there_is_time_to_drain() -> None:
    settings = load_settings({"target": "filters:Tagger"}, environment())
    before = int(value(r'command: \["sleep", "(\d+)"\]'))
    assert int(value(r"terminationGracePeriodSeconds: (\d+)")) > before + settings.drain_stop[-1] + FINAL_GRACE_S
    seen_after = int(value(r"periodSeconds: (\d+)")) * int(value(r"failureThreshold: (\d+)"))
    assert seen_after < before


def test_its_parts_belong_together() -> None:
    assert set(re.findall(r"^ +app: (.*)$", MANIFEST, re.MULTILINE)) == {"mail-filter"}
    assert all(text.count("app: mail-filter") >= 1 for text in DOCUMENTS.values())
    ports = dict(re.findall(r"- name: (\w+)\n +containerPort: (\d+)$", DEPLOYMENT, re.MULTILINE))
    assert ports["milter"] == value(r"^ +port: (\d+)", DOCUMENTS["Service"])
    assert value(r"targetPort: (\w+)", DOCUMENTS["Service"]) == "milter"
    assert ports["metrics"] == environment()["FASTMILTER_METRICS"].rpartition(":")[2]
    assert value(r"httpGet:\n +path: /readyz\n +port: (\w+)") == "metrics"
    assert int(value(r"minAvailable: (\d+)", DOCUMENTS["PodDisruptionBudget"])) < int(value(r"replicas: (\d+)"))
