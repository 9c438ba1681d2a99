# My cells lie in `mine`, a colleague's in `colleague`: one table of both, and one folder.
GRID="--datasets lesions --backbone tiny --protocol demo(epochs=2) --seeds 0"
python -m bench.run --methods sam,lora $GRID --out mine
python -m bench.run --methods sam,vpt_deep $GRID --out colleague

# One table. Cells of other protocols, weights or data files would stand in tables of their own, and be named.
python -m bench.tables --out mine colleague

# One folder: every cell is checked before it is copied, and what is there twice is copied once.
python -m bench.merge mine colleague --into both
