# A survivor behind nohup; the parent passes at once.
nohup sleep 1000 >/dev/null 2>&1 </dev/null &
setsid sleep 1000 >/dev/null 2>&1 </dev/null &
echo "left	done"
