# A method with a mistake fails; the others are stored. The mistake is mended, and only the failed cells run again.
GRID="--plugin mine.py --methods sam,lora,scaled --datasets lesions --backbone tiny --protocol demo(epochs=2) --seeds 0"

# The mistake: one block too far. The command names the cell and the reason, runs all others, and ends with 1.
sed 's/self.scale\[i\]/self.scale[i + 1]/' scaled.py > mine.py
python -m bench.run $GRID || echo "ended with $?"
python -m bench.status

# Mended. Failed cells are not tried again by themselves: the same command and --overwrite failed.
cp scaled.py mine.py
python -m bench.run $GRID --overwrite failed
python -m bench.tables
