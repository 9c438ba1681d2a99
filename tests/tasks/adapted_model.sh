# A model that was tuned on my images, used on a folder of new ones.
python -m bench.run --methods lora --datasets lesions --backbone tiny --protocol "demo(epochs=4)" --seeds 0
CELL=$(echo results/runs/lesions/lora*/*_seed0_*)

# A box around each object, in pixels; a detector may write this file.
cat > prompts.csv <<'CSV'
image,x0,y0,x1,y1
a.png,10,20,120,140
b.png,30,30,150,120
b.png,5,5,60,60
CSV
python -m bench.predict --run "$CELL" --images new --prompts prompts.csv --out predicted     # predicted/masks, and pictures of them
