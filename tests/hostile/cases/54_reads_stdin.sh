# Reads what somebody might have left there.
read -r line
echo "read	$? $line"
cat | wc -c | tr -d ' ' | sed 's/^/bytes	/'
