"""List the license of every installed package: `python dev/licences.py`.

The exit code is 1 if a license would bind whoever distributes nanolit: GPL, AGPL or SSPL, but not LGPL.
"""

import re
import sys
from collections import Counter
from importlib.metadata import Distribution, distributions

BINDING = r"\b(A?GPL|SSPL)|GNU (Affero )?General Public"


def licence(distribution: Distribution) -> str:
    """Return the license from the metadata: the SPDX expression, classifiers, or first line of the text."""
    about = distribution.metadata
    classified = [
        name.rpartition(" :: ")[2]
        for name in about.get_all("Classifier") or []
        if name.startswith("License :: ") and name != "License :: OSI Approved"
    ]
    expression, text = ((about.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
    return expression or ", ".join(classified) or text.strip().partition("\n")[0] or "not stated"


def main() -> int:
    found = {one.metadata["Name"]: (one.version, licence(one)) for one in distributions()}
    for name, (version, text) in sorted(found.items(), key=lambda item: item[0].lower()):
        print(f"{name} {version}: {text}")
    counts = Counter(text for _, text in found.values())
    print(f"\n{len(found)} packages: " + ", ".join(f"{n} × {text}" for text, n in counts.most_common(8)))
    binding = [name for name, (_, text) in found.items() if re.search(BINDING, text)]
    if binding:
        print(f"these would bind whoever distributes nanolit: {', '.join(binding)}", file=sys.stderr)
    return 1 if binding else 0


if __name__ == "__main__":
    sys.exit(main())
