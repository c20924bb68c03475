"A tiny adapter with a calibration, as a trained one would lie in its folder. For the tests of check, score, reward and demo."
import torch
from verifier_nb import files, model, scoring
from verifier_nb.config import LoraSettings, ModelSettings

HYBRID = {"features": ["log_odds", "any_false", "share_false", "nothing_to_check", "surprisal"], "mean": [0, 0.3, 0.1, 0.05, 1.0], "scale": [1.5, 0.45, 0.2, 0.2, 0.6],
          "coef": [0.2, 3.0, 0.4, 0.0, 0.1], "intercept": 0.0, "threshold": 0.5, "usual_surprisal": 100.0}
PLAIN = {"method": "temperature", "temperature": 1.3, "threshold": 0.47, "marks": False, "max_length": 600}

def make_adapter(folder, family="llama", calibration=None, **lora):
    "A saved adapter for a tiny model that says something: its B is not zero."
    torch.manual_seed(1)
    adapted = model.add_lora(model.load_base(ModelSettings(base=f"tiny:{family}", device="cpu")), LoraSettings(**{"r": 4, "dropout": 0.0, **lora}))
    for name, w in adapted.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(w, std=0.1)
    adapted.save_pretrained(folder)
    files.write_json(folder/"calibration.json", PLAIN | {"baselines": {"hybrid": HYBRID}} if calibration is None else calibration)
    return folder

def load(folder, **kwargs): return scoring.Verifier.from_pretrained(str(folder), device="cpu", **kwargs)
