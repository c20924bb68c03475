"The verifier as a reward function for TRL."
import numpy as np, pytest
from asking import load, make_adapter
from verifier_nb import prompt, model, scoring, reward
from verifier_nb.config import ModelSettings
from verifier_nb.files import VerifierError

@pytest.fixture(scope="module")
def verifier(tmp_path_factory): return load(make_adapter(tmp_path_factory.mktemp("adapter")))

QUESTIONS, SOLUTIONS = ["3 bags of 4 apples?", "2 + 2?"], ["3 * 4 = 12", "2 + 2 = 5"]

def test_a_reward_is_one_minus_p_flawed(verifier):
    got = reward.make_reward(verifier)(prompts=["Answer briefly."]*2, completions=SOLUTIONS, question=QUESTIONS, completion_ids=[[1], [2]], trainer_state=None)
    assert all(type(x) is float for x in got) and np.allclose(got, 1 - verifier.score(QUESTIONS, SOLUTIONS).p_calibrated)

def test_messages_and_plain_texts_earn_the_same(verifier):
    pay = reward.make_reward(verifier)
    plain = pay(prompts=QUESTIONS, completions=SOLUTIONS)
    talk = [[{"role": "system", "content": "Think."}, {"role": "user", "content": [{"type": "text", "text": q}]}] for q in QUESTIONS]
    assert pay(prompts=talk, completions=[[{"role": "assistant", "content": s}] for s in SOLUTIONS]) == pytest.approx(plain) == pay(prompts=["x", "y"], completions=SOLUTIONS, question=QUESTIONS)
    assert reward.make_reward(verifier, "task")(prompts=["x", "y"], completions=SOLUTIONS, task=QUESTIONS) == pytest.approx(plain)

def test_the_last_message_of_the_user_is_the_problem(verifier):
    "Whatever was said before it and after it; a completion is all that was said."
    pay, plain = reward.make_reward(verifier), reward.make_reward(verifier)(prompts=QUESTIONS[:1], completions=["3 * 4 =\n12"])
    said = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Another problem: 7 + 7?"}, {"role": "assistant", "content": "14"},
            {"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "Let me see."}]
    answer = [{"role": "assistant", "content": "3 * 4 ="}, {"role": "assistant", "content": "12"}]
    assert pay(prompts=[said], completions=[answer]) == pytest.approx(plain)

def test_what_cannot_be_read_earns_nothing_and_moves_nobody(verifier):
    got = reward.make_reward(verifier)(prompts=["a", *QUESTIONS, "b"], completions=["  ", *SOLUTIONS, "word "*2000])
    assert got[0] == got[3] == 0.0 and got[1:3] == pytest.approx(reward.make_reward(verifier)(prompts=QUESTIONS, completions=SOLUTIONS))
    with pytest.raises(VerifierError, match="completions and their problems"): reward.make_reward(verifier)(prompts=["a"])

def test_the_box_is_opened_once(verifier, monkeypatch):
    opened = []
    reward.default_verifier.cache_clear()
    monkeypatch.setattr(scoring.Verifier, "from_pretrained", classmethod(lambda cls, name: opened.append(name) or verifier))
    one, two = reward.reward(prompts=QUESTIONS, completions=SOLUTIONS), reward.reward(prompts=QUESTIONS, completions=SOLUTIONS)
    reward.default_verifier.cache_clear()
    assert one == two and opened == ["default"]

@pytest.mark.parametrize("conversational", [False, True])
def test_two_steps_of_grpo(verifier, conversational, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    policy, tokenizer = model.load_base(ModelSettings(base="tiny:llama", device="cpu")).requires_grad_(True), prompt.load_tokenizer("tiny:llama")
    before, paid = policy.get_input_embeddings().weight.detach().clone(), []
    pay = reward.make_reward(verifier)
    def watched(**given):
        paid.append(pay(**given))
        return paid[-1]
    prompts = [[{"role": "user", "content": f"Solve: {q}"}] for q in QUESTIONS] if conversational else [f"Solve: {q}" for q in QUESTIONS]
    args = trl.GRPOConfig(output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, learning_rate=1e-2, report_to="none", save_strategy="no", logging_steps=1,
                          use_cpu=True, bf16=False, disable_tqdm=True, temperature=1.5, seed=0)
    trainer = trl.GRPOTrainer(policy, reward_funcs=watched, args=args, train_dataset=Dataset.from_dict({"prompt": prompts*4, "question": QUESTIONS*4}), processing_class=tokenizer)
    trainer.train()
    rewards = [x["rewards/watched/mean"] for x in trainer.state.log_history if "rewards/watched/mean" in x]
    assert trainer.state.global_step == 2 and len(paid) == 2 and rewards == pytest.approx([np.mean(p) for p in paid], abs=1e-4)
    assert all(0 <= x <= 1 for p in paid for x in p) and not np.allclose(before, policy.get_input_embeddings().weight.detach())
