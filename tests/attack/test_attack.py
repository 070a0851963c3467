"""Three quick attacks on a running service. `make attack` runs all."""

from pathlib import Path

from core.settings import Settings
from tests.attack import attacks
from tests.attack.__main__ import findings
from tests.attack.attacks import ANSWER_SECONDS
from tests.attack.target import Target


def test_quick_attacks_are_refused(settings: Settings, tmp_path: Path) -> None:
    with Target(settings, tmp_path) as target:
        seen = [
            finding
            for attack in (attacks.header_bomb, attacks.huge_config, attacks.paths_in_sources)
            for finding in findings(target, attack)
        ]
    # The time of an answer says little on a machine that runs other tests at the same time.
    timed = f"within {ANSWER_SECONDS:g} s"
    assert len(seen) > 12
    assert not [finding for finding in seen if not finding.good and timed not in finding.expected]
