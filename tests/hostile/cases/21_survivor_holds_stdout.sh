# The survivor keeps stdout and stderr open.
sleep 1000 &
echo "left	done"
