# make demo      train the three stages on Fashion-MNIST and draw outputs/demo.png
# make demo DATA=FOLDER  the same on captioned images of your own, or on whatever else --data takes
# make evaluate  measure the pipeline in RUN, stage by stage
# make page      serve the page at http://127.0.0.1:7860: draw, vary, blend, edit, mix, inpaint in the browser
# make site      build the page that needs no server, from the committed pipelines, and serve it at http://127.0.0.1:8000
# make bench     time every stage beside other projects' code; QUICK=--quick in three minutes
# make test      lint and test; with chromium and its driver the page too, in the browser
# make torture   the tests of reliability with their full counts, and a table
# All set up .venv first. PYTHON names the interpreter to build it with.

PYTHON ?= python3
PY := .venv/bin/python
RUN ?= checkpoints/run
SITE := outputs/site
SHOWN := checkpoints/fashion-mnist checkpoints/emoji

.PHONY: setup data demo evaluate page site bench test torture lint clean

setup: .venv/.installed

# Installed in place: the scripts run from the checkout.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

data: setup
	$(PY) -m data.fashion_mnist

ifdef DATA
demo: setup
	$(PY) -m stages.demo '$(DATA)'
else
demo: data
	$(PY) train_clip.py --out $(RUN)
	$(PY) train_prior.py --out $(RUN)
	$(PY) train_decoder.py --out $(RUN)
	$(PY) sample.py --checkpoint $(RUN) --captions-file data/ten_captions.txt --n 8 --out outputs/demo
	cp outputs/demo/grid.png outputs/demo.png
	@echo "Look at outputs/demo.png"
endif

evaluate: data
	$(PY) -m stages.evaluate --checkpoint $(RUN)

page: setup
	$(PY) -m unclip.page

site: $(SITE)/index.html
	@echo "The page is at http://127.0.0.1:8000 until Ctrl-C"
	@$(PY) -m http.server 8000 --bind 127.0.0.1 --directory $(SITE)

$(SITE)/index.html: .venv/.installed $(wildcard unclip/web/site/*) $(SHOWN:=/model_index.json)
	rm -rf $(SITE)
	$(PY) -m unclip export $(SHOWN) --to web --out $(SITE)

bench: .venv/bench/.installed
	.venv/bench/bin/python -m stages.bench $(QUICK)

# Beside .venv, whose PyTorch it sees: the other projects need older versions of what the tests compare with.
.venv/bench/.installed: .venv/.installed
	$(PY) -m venv .venv/bench
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$(.venv/bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth
	.venv/bench/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[bench]'
	touch $@

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Three modules at a time: most tests keep one core busy, and some wait; in the order of tests/conftest.py, the slowest first.
test: lint data
	$(PY) -m pytest -n 3 --dist loadscope --no-loadscope-reorder

torture: setup
	OMP_NUM_THREADS=1 $(PY) tests/torture.py

clean:
	rm -rf .venv outputs build *.egg-info
