"""A bundle's training and evaluation, parsed on a small folder: what is made of what, and nothing has run."""

import json
from types import SimpleNamespace

from tests.support.bundle_runs import bundle_workflow
from tests.support.left_out import CONFIGS, FOLD, settings, write_data


class Parsed:
    """A bundle's evaluation of fold 0 after its training, on a small folder; nothing has run."""

    def __init__(self, bundle, folder):
        data = write_data(bundle, folder / "data")
        content = json.loads((data / "datalist.json").read_text())
        self.training = [case for case in content["training"] if case["fold"] != FOLD]
        self.validation = [case for case in content["training"] if case["fold"] == FOLD]
        self.testing, self.unlabelled = content["testing"], content.get("unlabelled", [])
        configs, given = CONFIGS[bundle], settings(bundle)
        self.get = bundle_workflow(bundle, *configs, data=data, out=folder, **given).parser.get_parsed_content
        # evaluation takes its settings from what training leaves beside the model
        ended = SimpleNamespace(state=SimpleNamespace(epoch=1))
        for kind in ("SaveAtlas", "SaveSettings"):
            for one in self.get("train#handlers"):
                if type(one).__name__ == kind:
                    one(ended)
        self.model = json.loads((folder / "models/model.json").read_text())
        asked = {"split": "validation", "fold": FOLD}
        flow = bundle_workflow(bundle, *configs, "evaluate", data=data, out=folder, **asked)
        self.evaluate = flow.parser.get_parsed_content

    def handler(self, place, kind, get=None):
        """The one handler of that kind."""
        (found,) = [one for one in (get or self.get)(place) if type(one).__name__ == kind]
        return found


def names(cases):
    """Patients of cases, in their order."""
    return [str(case["patient"]) for case in cases]
